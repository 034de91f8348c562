"""What can be set, declared once: name, default, range, meaning, symbol. Loads no torch."""

from fastreid_rib.settings.attention import AttentionSettings
from fastreid_rib.settings.declaration import Setting, SettingError, Settings
from fastreid_rib.settings.rib import RIBSettings
from fastreid_rib.settings.run import FolderSettings
from fastreid_rib.settings.search import SearchSettings

__all__ = [
    "AttentionSettings",
    "FolderSettings",
    "RIBSettings",
    "SearchSettings",
    "Setting",
    "SettingError",
    "Settings",
]
